"""The library behind `import adap`: audits, attacks, objectives and training for people's own code.

Nothing here is imported before it is used: `adap/__init__.py` names what is public.
"""
