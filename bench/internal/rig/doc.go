// Package rig is what the benches have in common: namespaces of their own to run in, quantiles and ratios, tables. What
// only one of them measures is in that one.
package rig
