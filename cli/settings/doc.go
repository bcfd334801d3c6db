// Package settings is the vocabulary in which people write resources: the
// flags of launch and create, the keys of set and of a stack file are one
// table, so that what works in one place works in all of them.
//
// A value is written as text, checked as far as that is possible without the
// daemon, and put into a Patch: a JSON merge patch (RFC 7396) of {labels,
// spec}. Errors are api.Error values with code "invalid".
package settings
