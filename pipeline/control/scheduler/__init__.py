"""The scheduler extender: which nodes a server's pod may run on by its verified release, and which of them suit."""
