"""What is known and decided without any I/O: instruments, calendars, planning, evidence."""
