package transport

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The carriers that the tests dial are this test binary again: under the name of
// ssh, or with asCarrier and a part to play as its first arguments.
const asCarrier = "as-carrier"

func TestMain(m *testing.M) {
	switch {
	case filepath.Base(os.Args[0]) == "ssh":
		playSSH(os.Args)
	case strings.HasPrefix(filepath.Base(os.Args[0]), oddName):
		printJSON(os.Args[1:])
	case len(os.Args) > 2 && os.Args[1] == asCarrier:
		play(os.Args[2], os.Args[3:])
	default:
		// Under the race detector each process would take a second to end.
		os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
		os.Exit(m.Run())
	}
}

// playSSH prints its arguments, or fails in the way that they tell it to:
// "-fail STATUS TEXT".
func playSSH(args []string) {
	if args[1] != "-fail" {
		printJSON(args)
		return
	}
	status, err := strconv.Atoi(args[2])
	check(err)
	fmt.Fprintln(os.Stderr, args[3])
	os.Exit(status)
}

func play(part string, args []string) {
	switch part {
	case "echo":
		copyAll(os.Stdout, os.Stdin)
	case "args":
		printJSON(args)
	case "die": // in the middle of the conversation
		_, err := io.ReadFull(os.Stdin, make([]byte, 5))
		check(err)
		fmt.Fprint(os.Stderr, args[0])
		os.Exit(3)
	case "fail":
		fmt.Fprintln(os.Stderr, args[1])
		status, err := strconv.Atoi(args[0])
		check(err)
		os.Exit(status)
	case "chatter":
		for i := range chatterLines {
			fmt.Fprintf(os.Stderr, "line %d of many\n", i)
		}
	case "deaf": // to the end of its input and to being told to end
		signal.Ignore(syscall.SIGTERM)
		lingerAfter("ready")
	case "linger": // past the end of its input
		lingerAfter("ready")
	case "leave":
		leave()
	case "flood":
		flood()
	default:
		playMore(part, args)
	}
}

// playMore has the parts that use this package themselves.
func playMore(part string, args []string) {
	switch part {
	case "stdio-echo":
		c := Stdio()
		copyAll(c, c)
		check(c.Close())
	case "stdio-close":
		closeStdio()
	case "stdio-broken":
		writeUntilBroken()
	case "hold":
		hold(args[0])
	case "parent":
		_, err := Dial(context.Background(), "", Options{RSH: carrier("hold", args[0])})
		check(err)
		lingerAfter("")
	default:
		check(fmt.Errorf("no part %q", part))
	}
}

const chatterLines = 50000

// lingerAfter prints a word and stays, but not for ever: if the test that should
// end it does not, it must not stay behind either.
func lingerAfter(word string) {
	fmt.Print(word)
	time.Sleep(time.Minute)
}

// leave ends at once and leaves a process behind that holds the error output.
func leave() {
	cmd := exec.Command(os.Args[0], asCarrier, "linger")
	cmd.Stderr = os.Stderr
	check(cmd.Start())
	fmt.Println(cmd.Process.Pid)
}

// flood writes without reading, until nobody takes it.
func flood() {
	for {
		if _, err := os.Stdout.Write(make([]byte, 32<<10)); err != nil {
			return
		}
	}
}

// closeStdio closes the connection while it is being read. That the pause may be
// too short can only make the test easier to pass.
func closeStdio() {
	c := Stdio()
	_, err := c.Write([]byte("ready"))
	check(err)
	failed := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		failed <- err
	}()
	time.Sleep(50 * time.Millisecond)
	check(c.Close())
	fmt.Fprintln(os.Stderr, "read failed:", <-failed)
}

// writeUntilBroken writes until the other side is gone, and says so.
func writeUntilBroken() {
	c := Stdio()
	for {
		if _, err := c.Write(make([]byte, 32<<10)); err != nil {
			fmt.Fprintln(os.Stderr, "write failed:", err)
			os.Exit(0)
		}
	}
}

// hold keeps a connection to address for as long as this process lives.
func hold(address string) {
	conn, err := net.Dial("tcp", address)
	check(err)
	_, err = io.WriteString(conn, "held")
	check(err)
	lingerAfter("")
}

func copyAll(w io.Writer, r io.Reader) {
	_, err := io.Copy(w, r)
	check(err)
}

func printJSON(v any) { check(json.NewEncoder(os.Stdout).Encode(v)) }

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "carrier:", err)
		os.Exit(99)
	}
}

// carrier returns the command that has this test binary play a part.
func carrier(part string, args ...string) string {
	words := []string{Quote(os.Args[0]), asCarrier, part}
	for _, arg := range args {
		words = append(words, Quote(arg))
	}
	return strings.Join(words, " ")
}

// program returns the path of this test binary.
func program(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// missing skips a test for want of something, or fails it where everything is
// meant to be there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("DISKRSYNC_TEST_REAL") == "1" {
		t.Fatal("this test needs " + what)
	}
	t.Skip("this test needs " + what)
}

// checkNothingLeft waits for the goroutines of all connections to end.
func checkNothingLeft(t *testing.T) {
	t.Helper()
	var stacks []byte
	for range 200 {
		stacks = make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if !bytes.Contains(stacks, []byte("transport.(*Conn)")) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("goroutines are left behind:\n%s", stacks)
}
