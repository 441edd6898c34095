"""What the operator wrote: model, load, check."""
