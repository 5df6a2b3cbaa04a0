"""Where arrays lie: the mesh of devices, and the rules from logical axes to mesh axes."""
