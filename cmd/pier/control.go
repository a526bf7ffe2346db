package main

import "github.com/spf13/cobra"

// controlOptions are what the commands share that ask a node to do something.
type controlOptions struct {
	target
	output
}

// group makes a command that only has others under it, which all get the shared flags.
func (o *controlOptions) group(use, short, example string) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example}
	group(cmd)
	o.target.addFlags(cmd)
	o.output.addFlags(cmd)
	return cmd
}
