package cli

import "math/rand/v2"

// The parts of the names that `seine run` gives: 48 × 48 of them.
var (
	adjectives = []string{"amber", "ample", "blue", "bold", "brave", "brisk", "broad", "calm", "clear", "cool", "crisp", "deep",
		"deft", "eager", "early", "fair", "fleet", "fresh", "gentle", "glad", "grand", "green", "keen", "kind",
		"lively", "lucky", "mellow", "merry", "mild", "neat", "noble", "pale", "placid", "plain", "prompt", "proud",
		"quick", "quiet", "rapid", "ready", "silver", "smooth", "steady", "sunny", "swift", "tidal", "warm", "wide"}
	nouns = []string{"bank", "barge", "bay", "bend", "bream", "bridge", "brook", "buoy", "canal", "carp", "creek", "current",
		"delta", "dock", "eddy", "eel", "ferry", "float", "ford", "gull", "harbor", "heron", "ice", "island",
		"jetty", "knot", "lock", "mast", "mill", "net", "oar", "otter", "perch", "pier", "pike", "pool",
		"quay", "reed", "ripple", "rudder", "sail", "shoal", "spring", "stork", "swan", "trout", "weir", "willow"}
)

// randomName makes a name that can be read and typed.
func randomName() string {
	return adjectives[rand.N(len(adjectives))] + "-" + nouns[rand.N(len(nouns))]
}
