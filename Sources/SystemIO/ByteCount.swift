extension Int {
  /// Of bytes: in GB with one digit after the point, as an error or a table shows it, or in whole MB below one GB.
  public var memorySize: String {
    if self < 1_000_000_000 { return "\((self + 500_000) / 1_000_000) MB" }
    let tenths = (self + 50_000_000) / 100_000_000
    return "\(tenths / 10).\(tenths % 10) GB"
  }
}
