// Package output renders what the API answers: tables and sections for
// people; JSON, YAML, CSV and bare names for programs.
//
// A table keeps to the terminal's width by shortening its flexible columns,
// and is never shortened where it isn't written to a terminal. Colours are
// for terminals only and follow NO_COLOR. Cells may carry what a guest or an
// image's author wrote, so control characters never reach the terminal.
package output
