import Compute
import ComputeCUDA
import ComputeOpenBLAS

/// What this machine has to compute with.
public struct FoundDevices: Sendable, Encodable {
  public let processor: Processor
  public let gpus: [GPU]
  public let cuda: Libraries?
  /// Why GPUs cannot be used, with the mend; nil if they can.
  public let missing: String?

  public struct Processor: Sendable, Encodable {
    /// Of fp32 and of bfloat16 products.
    public let kernels: String
    public let threads: Int
  }

  public struct GPU: Sendable, Encodable {
    /// What `--device` takes.
    public let device: String
    public let name: String
    public let capability: String
    public let memoryBytes: Int
    public let freeBytes: Int
  }

  /// Versions, and where cuBLAS was found.
  public struct Libraries: Sendable, Encodable {
    public let driver: String
    public let nvrtc: String
    public let cublas: String
    /// Nil where the loader found it by itself.
    public let folder: String?
  }

  /// Looks for them; whatever is missing is told, and no error.
  public init(threads: Int) {
    KernelSet.useBest()
    processor = Processor(
      kernels: OpenBLASBackend(threads: 1, bfloat16: .best).kernels(for: .bfloat16), threads: threads)
    var (gpus, cuda, missing): ([GPU], Libraries?, String?) = ([], nil, nil)
    do {
      let libraries = try CUDALibraries.open()
      let devices = try CUDADevice.all(libraries)
      gpus = devices.map {
        GPU(
          device: "cuda:\($0.index)", name: $0.name,
          capability: $0.capability.map(String.init).joined(separator: "."),
          memoryBytes: $0.totalBytes, freeBytes: $0.freeBytes)
      }
      let first = devices.first(where: \.isSupported) ?? devices[0]
      let versions = try CUDABackend(first, libraries).versions
      cuda = Libraries(
        driver: versions.driver, nvrtc: versions.nvrtc, cublas: versions.cublas,
        folder: libraries.folder.isEmpty ? nil : libraries.folder)
    } catch {
      missing = "\(error)"
    }
    (self.gpus, self.cuda, self.missing) = (gpus, cuda, missing)
  }
}
