package rig

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Table prints rows after an empty line, with the first column to the left and the others to the right. The first row
// says how many columns there are. A row without cells is an empty line; a cell "|" stands where a bar separates columns.
func Table(w io.Writer, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	fmt.Fprintln(w)
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			switch {
			case i == 0:
				fmt.Fprintf(&line, "%-*s", width[i], cell)
			case cell == bar:
				fmt.Fprintf(&line, " %*s", width[i], cell)
			default:
				fmt.Fprintf(&line, "%*s", width[i]+gap(row[i-1]), cell)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

const bar = "|"

// gap is the number of blanks before a column that comes after a cell.
func gap(before string) int {
	if before == bar {
		return 1
	}
	return 3
}
