package main

import (
	"math"
	"slices"
)

// quantile gives the smallest value that at least the share q of all values does not exceed; NaN where there is none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	return s[max(0, min(int(math.Ceil(q*float64(len(s))))-1, len(s)-1))]
}

// median is the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	return (quantile(values, .5) + quantile(values, math.Nextafter(.5, 1))) / 2
}

// ratios divides round by round: what one round had to suffer, both had.
func ratios(a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = a[i] / b[i]
	}
	return out
}
