import Compute
import ComputeCUDA
import ComputeOpenBLAS

/// What computes, as a person names it: `auto`, `cpu`, `cuda` or `cuda:1`.
public enum DeviceChoice: Sendable, Hashable, CustomStringConvertible {
  /// The GPU with the most free memory, if there is one that can be used; the processor otherwise.
  case auto
  case processor
  /// A GPU, counted from 0; nil for the one with the most free memory.
  case cuda(Int?)

  public var description: String {
    switch self {
    case .auto: "auto"
    case .processor: "cpu"
    case .cuda(let index): index.map { "cuda:\($0)" } ?? "cuda"
    }
  }

  public static let notation = "auto, cpu, cuda, or cuda:N for the GPU with that number"

  /// What `auto` says of a GPU that is there and does not compute.
  public static func withoutGPU(_ reason: some Error) -> String {
    "the processor computes, although there is a GPU: \(reason)"
  }

  public init?(_ text: String) {
    switch text {
    case "auto": self = .auto
    case "cpu": self = .processor
    case "cuda": self = .cuda(nil)
    default:
      let parts = text.split(separator: ":", omittingEmptySubsequences: false)
      guard parts.count == 2, parts[0] == "cuda", let index = Int(parts[1]), index >= 0 else { return nil }
      self = .cuda(index)
    }
  }

  /// The backend that it comes to on this machine.
  /// - Parameters:
  ///   - threads: of the processor
  ///   - isExact: fp32 throughout
  ///   - begun: the processor's kernels that a job was begun with, which then is `auto`: those for bfloat16 are taken again where
  ///     it has them
  ///   - deviceBytes: what matrices may take of a GPU's memory; nil for nearly all that is free
  ///   - warn: takes a note on a GPU that is there and cannot be used
  /// - Throws: ``CUDAError`` where a GPU was asked for
  public func backend(
    threads: Int, isExact: Bool, begun: ProcessorKernels? = nil, deviceBytes: Int? = nil,
    warn: (String) -> Void
  ) throws -> any ComputeBackend {
    let bfloat16 = begun.map { $0.bfloat16.flatMap { $0.isAvailable ? $0 : .best } } ?? .best
    let processor = { OpenBLASBackend(threads: threads, bfloat16: isExact ? nil : bfloat16) }
    func gpu(_ index: Int?) throws(CUDAError) -> CUDABackend {
      let libraries = try CUDALibraries.open()
      let devices = try CUDADevice.all(libraries)
      let device: CUDADevice
      if let index {
        guard devices.indices.contains(index) else { throw .noSuchDevice(index, count: devices.count) }
        device = devices[index]
      } else {
        // Those that can be used before others.
        let usable = devices.filter(\.isSupported)
        device = (usable.isEmpty ? devices : usable).max { $0.freeBytes < $1.freeBytes } ?? devices[0]
      }
      return try CUDABackend(device, libraries, threads: threads, isExact: isExact, memoryLimit: deviceBytes)
    }
    switch self {
    case .processor: return processor()
    case .cuda(let index): return try gpu(index)
    case .auto:
      // The bits of what it has begun are the processor's.
      if begun != nil { return processor() }
      do { return try gpu(nil) } catch {
        switch error {
        case .noDriver, .noDevice: break
        default: warn(Self.withoutGPU(error))
        }
        return processor()
      }
    }
  }
}
