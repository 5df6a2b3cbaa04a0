"""From a policy and prompts to responses: how a token is drawn, and the compiled loop that draws them."""
