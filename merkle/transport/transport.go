// Package transport makes the connections over which the two ends of a session
// talk. Each is an io.ReadWriteCloser, and what passes through it is not this
// package's business:
//
//	Dial    to the agent on another machine, by the user's own ssh or any other
//	        command that carries two pipes
//	Stdio   from the agent back to whoever dialled it
//	Pipe    between two ends in one process
//	Limit   any of these, at a bounded rate
//
// # The command line
//
// With ssh it is
//
//	ssh FLAGS -- HOST 'diskrsync serve --stdio'
//
// and with a carrier of the user's own, its words and then
//
//	diskrsync serve --stdio
//
// These are all that a shell at the far side ever sees: no path of an image and
// nothing else of the user's is among them, except the agent's program, which is
// quoted. A host that could be taken for an option is refused, although "--"
// stands before it; some carriers have no such mark.
//
// # Nothing is left behind
//
// Closing a connection ends the carrier, if need be by force, and waits for it.
// If this process is killed, the carrier's input ends, and that of the agent with
// it; on Linux the carrier gets a SIGTERM besides.
package transport
