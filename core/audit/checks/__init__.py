"""Whether an audit can be believed: checks of the audit itself."""
