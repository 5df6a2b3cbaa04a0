"""From a laptop to a running experiment on Cloud TPUs. Standard library only: it runs before anything is installed."""
