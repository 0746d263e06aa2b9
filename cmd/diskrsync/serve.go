package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
)

func (a *app) serveCommand() *cobra.Command {
	var stdio, readOnly bool
	var root, stateDir string
	cmd := &cobra.Command{
		Use:   "serve --stdio",
		Short: "Be the agent at the far end of a connection",
		Long: `Serves the images of this machine to a diskrsync that started this one, over
standard input and output.

To let a key do nothing but that, in one folder, put this before it in
~/.ssh/authorized_keys:

  command="diskrsync serve --stdio --root /mnt/backup",restrict`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if !stdio {
				return usageError{errors.New("serve needs --stdio: there is no other way to serve yet")}
			}
			agent := session.Agent{ReadOnly: readOnly, StateDir: stateDir}
			if root != "" {
				if agent.Root, err = os.OpenRoot(root); err != nil {
					return fmt.Errorf("opening the folder to serve: %w", err)
				}
				defer agent.Root.Close()
			}
			return agent.Serve(cmd.Context(), transport.Stdio())
		},
	}
	cmd.Flags().BoolVar(&stdio, "stdio", false, "talk over standard input and output")
	cmd.Flags().StringVar(&root, "root", "", "serve only what is in this `folder`")
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "refuse to change anything")
	cmd.Flags().StringVar(&stateDir, "state-dir", "", "store hashes of devices in this `folder`, whatever the other side says")
	return cmd
}
