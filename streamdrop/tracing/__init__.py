"""Following a model with torch.fx: what each step does, what is live between steps, and the pieces made of them."""
