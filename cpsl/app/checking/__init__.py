"""The parts of the check of settings and data: `cpsl.app.check` is the command."""
