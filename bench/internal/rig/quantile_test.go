package rig

import (
	"math"
	"slices"
	"testing"
)

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100) // 100, 99, … 1
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, tt := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{[]float64{7}, .5, 7},
		{[]float64{7}, .99, 7},
		{[]float64{3, 1, 2}, 0, 1},
		{[]float64{3, 1, 2}, .5, 2},
		{[]float64{3, 1, 2}, 1, 3},
		{[]float64{4, 1, 3, 2}, .5, 2},
		{hundred, .5, 50},
		{hundred, .99, 99},
		{hundred, 1, 100},
	} {
		if got := Quantile(tt.values, tt.q); got != tt.want {
			t.Errorf("Quantile(%v, %v) is %v, want %v", tt.values, tt.q, got, tt.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("quantile has sorted its caller's values")
	}
	if got := Quantile(nil, .5); !math.IsNaN(got) {
		t.Errorf("quantile of nothing is %v, want NaN", got)
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{5}, 5},
		{[]float64{9, 1}, 5},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := Median(tt.values); got != tt.want {
			t.Errorf("Median(%v) is %v, want %v", tt.values, got, tt.want)
		}
	}
}

func TestRatios(t *testing.T) {
	// The second round was ten times slower for both: the ratio does not see it, the quotient of the means would.
	got := Ratios([]float64{10, 100, 12}, []float64{20, 200})
	if want := []float64{.5, .5}; !slices.Equal(got, want) {
		t.Errorf("ratios are %v, want %v", got, want)
	}
}
