package api

import "errors"

// ExecRequest asks for a command in a running guest.
type ExecRequest struct {
	Command []string `json:"command" minItems:"1"`
	Env     []string `json:"env,omitempty" doc:"KEY=VALUE, beside the entry point's"`
	User    string   `json:"user,omitempty" doc:"USER or UID, with :GROUP or :GID; the entry point's if empty"`
	WorkDir string   `json:"workDir,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
	Cols    uint16   `json:"cols,omitempty"`
	Rows    uint16   `json:"rows,omitempty"`
	Stdin   bool     `json:"stdin,omitempty" doc:"Else standard input is /dev/null"`
}

// The Field of an error that means that a command was not executed.
const (
	FieldCommand = "command"
	FieldUser    = "user"
	FieldWorkDir = "workDir"
)

// CommandStatus is the exit status that a shell gives for a command that
// could not be executed (POSIX, Shell Command Language §2.8.2): 127 when it
// was not found, 126 when it, its user or its working directory can't be
// used. It is 0, false for every other error.
func CommandStatus(err error) (status int, ok bool) {
	var e *Error
	if !errors.As(err, &e) {
		return 0, false
	}
	switch {
	case e.Field == FieldCommand && e.Code == CodeNotFound:
		return 127, true
	case e.Field == FieldCommand, e.Field == FieldUser, e.Field == FieldWorkDir:
		return 126, true
	}
	return 0, false
}
