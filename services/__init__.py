"""The services, one folder a process."""
