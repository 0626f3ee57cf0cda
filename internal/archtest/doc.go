// Package archtest holds the project's shape: which package may import which (layers_test.go), which third-party module
// belongs to which folder (modules_test.go), and the house rules about comments, names and sizes. It is all tests; the
// tables are data with a reason per row, and a row that is about nothing any more fails as well.
package archtest
