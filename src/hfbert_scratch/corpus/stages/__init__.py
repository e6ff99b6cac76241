"""The stages of a build, index → plan → write, shared among processes, tasks and hosts."""
