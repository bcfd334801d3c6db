package cli

import (
	"context"
	"fmt"
	"iter"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

func (a *app) operationCmd() *cobra.Command {
	var all bool
	list := listVerb(a, "List operations in progress", a.operationListing(), func(ctx context.Context, c *client.Client) iter.Seq2[api.Operation, error] {
		return c.Operations(ctx, all)
	})
	list.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	show := showVerb(a, "Show one operation", "ID", operationIDs, func(ctx context.Context, c *client.Client, id string) (*api.Operation, error) {
		return c.Operation(ctx, id)
	}, a.describeOperation)
	cancel := &cobra.Command{Use: "cancel ID...", Short: "Cancel operations, and wait until they have ended", Args: args(1, -1, "ID..."), ValidArgsFunction: a.complete(-1, operationIDs)}
	cancel.RunE = func(cmd *cobra.Command, ids []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		return a.each(ids, func(_ *progress.Reporter, id string) error {
			op, err := c.CancelOperation(cmd.Context(), id)
			if err != nil {
				return err
			}
			if op, err = c.Wait(cmd.Context(), op, nil); err == nil {
				a.note("%s of %s was done before it could be cancelled", op.Verb, op.Target)
				return nil
			}
			if op != nil && op.State == api.OperationCancelled {
				return nil
			}
			return err
		})
	}
	wait := &cobra.Command{
		Use: "wait ID...", Short: "Wait until operations have ended", Args: args(1, -1, "ID..."), ValidArgsFunction: a.complete(-1, operationIDs),
		Long: "The exit status is 1 when one of them failed or was cancelled.",
	}
	wait.RunE = func(cmd *cobra.Command, ids []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		return a.each(ids, func(rep *progress.Reporter, id string) error {
			op, err := c.Operation(cmd.Context(), id)
			if err != nil {
				return err
			}
			_, err = c.Wait(cmd.Context(), op, func(now *api.Operation) { rep.Update(id, progress.Of(now)) })
			rep.Finish(id)
			return err
		})
	}
	return noun("operation", "Operations: work in progress", list, show, cancel, wait)
}

func (a *app) operationListing() output.Listing[api.Operation] {
	return output.Listing[api.Operation]{
		Name: func(o api.Operation) string { return o.ID },
		Columns: []output.Column[api.Operation]{
			{Head: "ID", Cell: func(o api.Operation) string { return o.ID }},
			{Head: "VERB", Cell: func(o api.Operation) string { return o.Verb }},
			{Head: "TARGET", Flex: true, Cell: func(o api.Operation) string { return o.Target }},
			{Head: "STATE", Cell: func(o api.Operation) string { return string(o.State) }, Style: operationStyle},
			{Head: "DONE", Right: true, Cell: done},
			{Head: "STEP", Flex: true, Cell: func(o api.Operation) string {
				if o.Error != nil {
					return o.Error.Message
				}
				return o.Step
			}},
			{Head: "AGE", Right: true, Cell: func(o api.Operation) string { return a.age(o.Created) }, Raw: func(o api.Operation) string { return stamp(o.Created) }},
		},
	}
}

func operationStyle(o api.Operation) output.Style {
	switch o.State {
	case api.OperationDone:
		return output.Good
	case api.OperationFailed:
		return output.Bad
	case api.OperationCancelled:
		return output.Dim
	}
	return output.Busy
}

func done(o api.Operation) string {
	if o.Total <= 0 || o.Finished() {
		return ""
	}
	return fmt.Sprintf("%d%%", min(o.Done, o.Total)*100/o.Total)
}

func (a *app) describeOperation(s *output.Sections, o *api.Operation) {
	s.Pair("ID", o.ID)
	s.Pair("Verb", o.Verb)
	s.Pair("Target", o.Target)
	s.Pair("Project", o.Project)
	s.Styled("State", string(o.State), operationStyle(*o))
	s.Pair("Step", o.Step)
	s.Pair("Done", done(*o))
	s.Pair("Result", o.Result)
	s.Pair("Begun", a.ago(&o.Created))
	s.Pair("Ended", a.ago(o.Ended))
	if o.Error != nil {
		s.Styled("Error", o.Error.Message, output.Bad)
		s.Pair("Code", string(o.Error.Code))
		s.Pair("Hint", o.Error.Hint)
	}
}
