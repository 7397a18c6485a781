/// How many outliers a linear keeps beside its codes, and how they are found.
public struct OutlierSettings: Sendable, Hashable {
  public enum Method: Sendable, Hashable {
    /// Outliers where rounding costs the most, on a grid chosen without them.
    case standard
    /// As published: largest magnitudes first, then projected gradient steps between the descent's passes.
    case paper(rounds: Int)
  }

  /// Share of the weights, or of the columns, that stays in full precision; 0 … 1.
  public var share: Double
  /// Whole columns instead of single entries.
  public var isStructured: Bool
  public var method: Method

  public init(share: Double = 0.01, isStructured: Bool = false, method: Method = .standard) {
    precondition(share >= 0 && share <= 1, "a share lies between 0 and 1")
    self.share = share
    self.isStructured = isStructured
    self.method = method
  }

  /// Columns that are kept whole: what the share comes to, at least one.
  public func columnCount(inFeatures: Int) -> Int {
    min(max(Int(share * Double(inFeatures)), 1), inFeatures)
  }

  /// Entries that are kept, all of which the outputs store, zeros too.
  public func entryCount(outFeatures: Int, inFeatures: Int) -> Int {
    isStructured
      ? columnCount(inFeatures: inFeatures) * outFeatures
      : Int(share * Double(outFeatures * inFeatures))
  }
}

extension QuantEase {
  /// How outliers are found beside it: with the published algorithm as they were published, in as many rounds as it has passes.
  public var outlierMethod: OutlierSettings.Method {
    settings == .paper(passes: settings.passes) ? .paper(rounds: settings.passes) : .standard
  }
}
