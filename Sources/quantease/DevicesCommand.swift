import ArgumentParser
import Devices
import Foundation

struct DevicesCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "devices",
    abstract: "Lists what this machine can compute with.",
    discussion: """
      GPUs need NVIDIA's driver, and two of its libraries, cuBLAS and NVRTC: those of a CUDA toolkit, or of the wheels \
      nvidia-cublas and nvidia-cuda-nvrtc in a Python environment. QUANTEASE_CUDA_PATH names a folder that has them. What is \
      missing is said with the command that brings it.
      """)

  @Flag(help: "Print JSON.")
  var json = false

  func run() throws {
    let found = FoundDevices(threads: ProcessInfo.processInfo.activeProcessorCount)
    if json { return try Console.json(found) }
    try Console.line("cpu     \(found.processor.threads) threads, \(found.processor.kernels)")
    for gpu in found.gpus {
      try Console.line(
        "\(gpu.device)  \(gpu.name), compute capability \(gpu.capability), \(Console.bytes(gpu.freeBytes)) of "
          + "\(Console.bytes(gpu.memoryBytes)) free")
    }
    if let cuda = found.cuda {
      try Console.line(
        "CUDA    driver for \(cuda.driver), cuBLAS \(cuda.cublas), NVRTC \(cuda.nvrtc)"
          + (cuda.folder.map { ", in \($0)" } ?? ""))
    }
    if let missing = found.missing { try Console.line("no GPU  \(missing)") }
  }
}
