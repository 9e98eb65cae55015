"""What runs where, and why: the request, the facts, the plan."""
