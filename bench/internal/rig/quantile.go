package rig

import (
	"math"
	"slices"
	"time"
)

// Quantile gives the smallest value that at least the share q of all values does not exceed; NaN where there is none.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	return s[max(0, min(int(math.Ceil(q*float64(len(s))))-1, len(s)-1))]
}

// Median is the middle value, or the mean of the two in the middle.
func Median(values []float64) float64 {
	return (Quantile(values, .5) + Quantile(values, math.Nextafter(.5, 1))) / 2
}

// Ratios divides sample by sample: what one had to suffer in a sample, both had.
func Ratios(a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = a[i] / b[i]
	}
	return out
}

// Millis gives the durations of samples in milliseconds.
func Millis[T any](samples []T, of func(T) time.Duration) []float64 {
	out := make([]float64, len(samples))
	for i := range samples {
		out[i] = float64(of(samples[i])) / 1e6
	}
	return out
}
