import FoundationEssentials

/// All that the daemon knows of its jobs, for the commands around it.
public struct StatusDetails: Codable, Sendable {
  public var snapshot: StatusSnapshot
  /// In the order of arrival.
  public var jobs: [JobRecord]
  /// What stands in the drop folder and is no job.
  public var drops: [Drop]

  public init(snapshot: StatusSnapshot, jobs: [JobRecord], drops: [Drop]) {
    self.snapshot = snapshot
    self.jobs = jobs
    self.drops = drops
  }

  private static let (positive, negative, none) = ("Infinity", "-Infinity", "NaN")

  func json() throws -> [UInt8] {
    let encoder = JSONEncoder()
    encoder.nonConformingFloatEncodingStrategy = .convertToString(
      positiveInfinity: Self.positive, negativeInfinity: Self.negative, nan: Self.none)
    return Array(try encoder.encode(self))
  }

  init(json: some Sequence<UInt8>) throws {
    let decoder = JSONDecoder()
    decoder.nonConformingFloatDecodingStrategy = .convertFromString(
      positiveInfinity: Self.positive, negativeInfinity: Self.negative, nan: Self.none)
    self = try decoder.decode(StatusDetails.self, from: Data(json))
  }
}
