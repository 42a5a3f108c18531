"""What `prefork migrate` knows of other servers, a module for each, and how it becomes a file."""
