"""The Python client and the command `adap`: HTTP only, and none of the service's own modules."""
