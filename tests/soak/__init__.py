"""The soak: real parts under load of three tenants, killed at random, and nothing may be lost."""
