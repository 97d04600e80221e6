"""Everything that is decided without I/O: instruments, calendars, planning, evidence."""
