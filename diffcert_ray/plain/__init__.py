"""The same words for certificates without votes: units of losses, their plan and stages."""
