package cli

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

func (a *app) tokenCmd() *cobra.Command {
	list := listVerb(a, "List tokens, without their secrets", a.tokenListing(), func(ctx context.Context, c *client.Client) iter.Seq2[api.Token, error] { return c.Tokens(ctx) })
	del := deleteVerb(a, "Revoke tokens", tokenNames, func(ctx context.Context, c *client.Client, n string) error { return c.DeleteToken(ctx, n) })
	return noun("token", "Tokens: access to the API over TCP", list, a.tokenCreateCmd(), del)
}

func (a *app) tokenCreateCmd() *cobra.Command {
	var expires timeSpan
	cmd := &cobra.Command{
		Use:               "create NAME",
		Short:             "Create a token and print its secret, this once",
		Long:              "Whoever has the secret may do everything. It is given to the command in CLEAVE_TOKEN, beside --host.",
		Example:           `  CLEAVE_TOKEN=$(cleave token create laptop --expires 30d)`,
		Args:              args(1, 1, "NAME"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().Var(&expires, "expires", "time after which it is worthless (default: never)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		t := api.Token{Meta: api.Meta{Name: args[0]}}
		if expires.set {
			at := a.now().Add(expires.Duration).UTC()
			t.Expires = &at
		}
		made, err := c.CreateToken(cmd.Context(), &t)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.out.W, made.Secret)
		return err
	}
	return cmd
}

func (a *app) tokenListing() output.Listing[api.Token] {
	return output.Listing[api.Token]{
		Name: func(t api.Token) string { return t.Name },
		Columns: []output.Column[api.Token]{
			{Head: "NAME", Flex: true, Cell: func(t api.Token) string { return t.Name }},
			{Head: "AGE", Right: true, Cell: func(t api.Token) string { return a.age(t.Created) }, Raw: func(t api.Token) string { return stamp(t.Created) }},
			{Head: "EXPIRES", Cell: func(t api.Token) string {
				switch {
				case t.Expires == nil:
					return "never"
				case t.Expires.Before(a.now()):
					return "expired"
				}
				return "in " + output.Span(t.Expires.Sub(a.now()).Round(time.Minute))
			}, Raw: func(t api.Token) string { return stampOf(t.Expires) }},
			{Head: "LAST USED", Cell: func(t api.Token) string {
				if t.Used == nil {
					return "never"
				}
				return a.age(*t.Used) + " ago"
			}, Raw: func(t api.Token) string { return stampOf(t.Used) }},
		},
	}
}
