"""The daemon: configuration, scheduler, session loop, planners, tools, verification, control and CLI."""
