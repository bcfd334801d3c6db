// Package guest is the side of the agent that lives inside a guest.
package guest
