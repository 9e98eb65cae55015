"""Planning: the request, the facts, and the plan that says what runs where and why."""
