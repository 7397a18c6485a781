import Foundation
import TestSupport
import Testing

/// What computes, on a machine whose GPU, if it has one, is none of these tests' business.
struct DeviceTests {
  private struct Found: Decodable {
    struct Processor: Decodable {
      var kernels: String
      var threads: Int
    }
    struct GPU: Decodable { var device: String }
    var processor: Processor
    var gpus: [GPU]
    var missing: String?
  }

  @Test func `devices lists what there is, and what is missing with a mend`() throws {
    let run = try Quantease(["devices", "--json"])
    #expect(run.status == 0, "\(run.errors)")
    let found = try JSONDecoder().decode(Found.self, from: Data(run.output.utf8))
    #expect(found.processor.threads > 0 && found.processor.kernels.contains("OpenBLAS"))
    // What cannot be used says why.
    #expect(!found.gpus.isEmpty || found.missing?.isEmpty == false)
    #expect(try Quantease(["devices"]).output.contains("cpu"))
  }

  @Test(arguments: ["gpu", "cuda:", "cuda:-1", "cuda:x", ""])
  func `a device that there cannot be is a mistake on the command line`(_ device: String) throws {
    let run = try Quantease([
      "quantize", TestFiles.model("llama"), "--output", "/nowhere/out", "--calibration", "ids.safetensors",
      "--device", device,
    ])
    #expect(run.status == 64 && run.errors.contains("auto, cpu, cuda"), "\(run.status) \(run.errors)")
  }

  @Test func `a GPU that is not there is asked for in vain, and nothing is written`() throws {
    let directory = try TemporaryDirectory()
    let run = try Quantease([
      "quantize", TestFiles.model("llama"), "--output", directory.file("out"), "--calibration",
      TestFiles.model("llama/expected.safetensors"), "--samples", "2", "--sequence-length", "12", "--device",
      "cuda:77",
    ])
    #expect(run.status == 75, "\(run.status) \(run.errors)")
    #expect(run.errors.contains("NVIDIA") || run.errors.contains("GPU") || run.errors.contains("pip install"))
    #expect(!FileManager.default.fileExists(atPath: directory.file("out")))
  }

  @Test func `no program depends on a library of CUDA's`() throws {
    let libraries = try Quantease(["-c", "ldd '\(try Quantease.binary)'"], program: "/bin/bash").output
    #expect(libraries.contains("libopenblas") && !libraries.contains("libcu") && !libraries.contains("nvrtc"))
  }
}
