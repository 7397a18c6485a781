import Export
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

  func json() throws -> [UInt8] { try JSONEncoder.ofReports.lines(self) }

  init(json: some Sequence<UInt8>) throws {
    self = try JSONDecoder.ofReports.decode(StatusDetails.self, from: Data(json))
  }
}
