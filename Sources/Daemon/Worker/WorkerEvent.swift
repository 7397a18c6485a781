import FoundationEssentials

/// What a worker tells the daemon: one line of JSON each, on its standard output.
public enum WorkerEvent: Codable, Sendable, Equatable {
  /// A new step has begun, in words.
  case step(String)
  /// Something that should not have been, and was made good.
  case warning(String)
  /// The job's digest: what it is, whatever its name.
  case identity(String)
  case planned(Plan)
  /// Slurm has the job, under this number.
  case submitted(String)
  /// Another job had come to the same before, and its result does for this one.
  /// - `output`: where it stands, if it has this job's name already; nil if the files are in the job's directory
  case reused(job: String, output: String?)
  /// Linears that an earlier worker had quantized, with their errors, by layer.
  case resumed([Linear])
  case linear(Linear, secondsRemaining: Double)
  /// The worker repeats what an earlier one had done and no file holds, to go on from there.
  case catchingUp(CatchingUp)
  /// The work has gone on; there is nothing to show.
  case advanced
  case finished(Summary)
  case failed(JobFailure)

  public struct Plan: Codable, Sendable, Equatable {
    public var architecture: String
    public var layerCount: Int
    public var linearCount: Int
    public var memoryBytes: Int
    /// What computes; nil of what an earlier version has planned.
    public var kernels: String?
  }

  public struct CatchingUp: Codable, Sendable, Equatable {
    /// The layer that is repeated now, and the one at which new work begins.
    public var layer: Int
    public var until: Int
    /// Until then, by what it has taken so far; nil at its beginning.
    public var secondsRemaining: Double?
  }

  public struct Linear: Codable, Sendable, Equatable {
    public var name: String
    public var layer: Int
    public var relativeError: Double
  }

  public struct Summary: Codable, Sendable, Equatable {
    public var meanRelativeError: Double
    public var bitsPerWeight: Double
  }

  /// The event as a line, its end included.
  public func line() -> [UInt8] {
    do { return Array(try JSONEncoder().encode(self)) + [UInt8(ascii: "\n")] } catch {
      preconditionFailure("an event is plain values: \(error)")
    }
  }

  /// Reads a line; nil if it is no event.
  public init?(line: some Sequence<UInt8>) {
    guard let event = try? JSONDecoder().decode(WorkerEvent.self, from: Data(line)) else { return nil }
    self = event
  }
}

/// Why a job came to nothing, and what that asks of a person.
public struct JobFailure: Error, Codable, Sendable, Equatable {
  public enum Kind: String, Codable, Sendable {
    /// The job is at fault: to try again changes nothing.
    case job
    /// A file system is full: the job goes on when there is space.
    case noSpace
    /// The machine is at fault, and a person or time mends it: the job is tried again, ever less often.
    case blocked
    /// A device failed, or the worker itself: the job is tried again a few times.
    case broken
  }

  public var kind: Kind
  public var message: String
  /// By sysexits(3).
  public var code: Int32
  /// What is missing, where a file system is full.
  public var shortage: Shortage?

  public struct Shortage: Codable, Sendable, Equatable {
    /// On the file system that is full.
    public var path: String
    /// Bytes that were asked for at once; nil where that is not known.
    public var neededBytes: Int?
  }

  public init(_ kind: Kind, _ message: String, code: Int32, shortage: Shortage? = nil) {
    self.kind = kind
    self.message = message
    self.code = code
    self.shortage = shortage
  }
}
