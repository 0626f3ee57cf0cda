//go:build !race

package engine_test

// sequences is how many random sequences are run. make fuzz's time is better spent on more: SEINE_SEQUENCES=10000.
const sequences = 3000
