"""The commands of ``ktrdr``, a module a group."""
