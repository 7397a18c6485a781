import Compute

/// Why a GPU cannot be computed with, or can no longer be. Nothing of it is the job's fault: it may run elsewhere, or later.
public enum CUDAError: DeviceError, Sendable, Equatable {
  /// There is no driver, with the loader's words.
  case noDriver(String)
  case noDevice
  /// Devices are counted from 0.
  case noSuchDevice(Int, count: Int)
  /// A library that the driver does not bring, or a function of one, with the loader's words.
  case noLibrary(Library, String)
  case driverTooOld(version: Int)
  /// By its compute capability.
  case deviceTooOld(String, capability: [Int])
  case cannotCompile(log: String)
  case outOfMemory(bytes: Int, free: Int, total: Int)
  /// A call failed, with the library's words; the device's memory is lost.
  case callFailed(String, words: String)

  public enum Library: String, Sendable {
    case nvrtc = "NVRTC"
    case cublas = "cuBLAS"
  }

  /// The oldest driver's CUDA whose interface is used, times 1,000 and with the minor version times 10.
  static let oldestDriver = 12_000

  /// The one command that brings the libraries where the driver alone is installed, one for CUDA 13; for an older one the
  /// packages' names end in -cu12.
  public static let installation =
    "python3 -m venv ~/.local/share/quantease/cuda && ~/.local/share/quantease/cuda/bin/pip install nvidia-cublas "
    + "nvidia-cuda-nvrtc"

  public var description: String {
    switch self {
    case .noDriver(let words): "there is no NVIDIA driver (\(words)); install it, or take --device cpu"
    case .noDevice: "the NVIDIA driver finds no GPU; look at nvidia-smi, or take --device cpu"
    case .noSuchDevice(let index, let count):
      "there is no GPU \(index); there are \(count), counted from 0: see quantease devices"
    case .noLibrary(let library, let words):
      "\(library.rawValue) is missing (\(words)); install it: \(Self.installation) (with a driver for CUDA 12 nvidia-cublas-cu12 "
        + "nvidia-cuda-nvrtc-cu12)"
    case .deviceTooOld(let name, let capability):
      "\(name) has compute capability \(capability.map(String.init).joined(separator: ".")) and must have 8.0 or more; take "
        + "--device cpu"
    case .driverTooOld(let version):
      "the NVIDIA driver is for CUDA \(version.cudaVersion) and must be for 12.0 or later: update it, or take --device cpu"
    case .cannotCompile(let log):
      "the GPU's kernels cannot be compiled; NVRTC and the driver may not fit together: \(log)"
    case .outOfMemory(let bytes, let free, let total):
      "the GPU is out of memory: \(bytes.gigabytes) are needed at once, and of \(total.gigabytes) there are "
        + "\(free.gigabytes); end what else uses it, or take --device cpu"
    case .callFailed(let call, let words):
      "the GPU failed in \(call): \(words); look at dmesg for an Xid, and start the job again"
    }
  }
}

extension Int {
  /// A version as CUDA counts it.
  var cudaVersion: String { "\(self / 1_000).\(self % 1_000 / 10)" }

  fileprivate var gigabytes: String {
    let tenths = (Double(self) / 1e8).rounded() / 10
    return "\(tenths) GB"
  }
}
