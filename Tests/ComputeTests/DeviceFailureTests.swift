import CCUDA
import CUDAOnCPU
import Compute
import Synchronization
import Tensors
import TestSupport
import Testing

@testable import ComputeCUDA

/// The emulated driver's own functions, for those of a test to call.
@safe private struct Driver: @unchecked Sendable {
  let calls: qe_cuda_libraries

  static let emulated: Driver = {
    let calls = UnsafeMutablePointer<qe_cuda_libraries>.allocate(capacity: 1)
    unsafe qe_cuda_on_cpu(calls)
    return unsafe Driver(calls: calls.pointee)
  }()
}

/// Bytes beyond which a test's device has no memory left for one allocation.
private let largestAllocation = 100 << 20
/// Launches until a test's device falls off the bus; each counts for one test alone.
private let launchesLeft = Atomic<Int>(.max)

/// What a device, its driver or its libraries lack is told, and nothing is computed from there on.
@Suite(.serialized)
struct DeviceFailureTests {
  private func failure(_ change: (UnsafeMutablePointer<qe_cuda_libraries>) -> Void) -> CUDAError? {
    do {
      _ = try unsafe EmulatedGPU.backend(EmulatedGPU.libraries(change))
      return nil
    } catch { return error as? CUDAError }
  }

  @Test func `a machine without a driver has no GPU, and says what to do`() throws {
    let error = try #require(throws: CUDAError.self) { try CUDALibraries.open() }
    if case .noDriver = error { #expect("\(error)".contains("--device cpu")) }
  }

  @Test func `no device, an old driver, a program that does not compile`() {
    #expect(
      unsafe failure {
        unsafe $0.pointee.cuDeviceGetCount = {
          unsafe $0.pointee = 0; return 0
        }
      } == .noDevice)
    #expect(
      unsafe failure {
        unsafe $0.pointee.cuDriverGetVersion = {
          unsafe $0.pointee = 11_080; return 0
        }
      }
        == .driverTooOld(version: 11_080))
    let error = unsafe failure { unsafe $0.pointee.nvrtcCompileProgram = { _, _, _ in 6 } }
    guard case .cannotCompile = error else { return #expect(Bool(false), "\(String(describing: error))") }
  }

  @Test func `memory that is not there is told with what is, and all that follows does nothing`() throws {
    let libraries = unsafe EmulatedGPU.libraries {
      unsafe $0.pointee.cuMemAllocAsync = { address, bytes, stream in
        bytes > largestAllocation
          ? Int32(qe_cuda_out_of_memory)
          : unsafe Driver.emulated.calls.cuMemAllocAsync(address, bytes, stream)
      }
    }
    let backend = try EmulatedGPU.backend(libraries)
    let small = backend.upload(Matrix(rows: 1, columns: 2, [3, 4]))
    let large = backend.makeMatrix(rows: 6_000, columns: 6_000)
    guard case .outOfMemory(let bytes, _, let total) = backend.failure as? CUDAError else {
      Issue.record("\(String(describing: backend.failure))")
      return
    }
    #expect(bytes == 144_000_000 && total > bytes)
    #expect(throws: CUDAError.self) { try backend.checkDevice() }
    backend.scale(large, by: 2)
    backend.multiply(large, large, transposingB: false, scale: 1, into: large, keeping: 0)
    #expect(
      backend.diagonal(of: large.prefix(3).reshaped(rows: 1, columns: 18_000).prefix(rows: 1, columns: 1))
        == [0])
    #expect(throws: ComputeError.self) {
      _ = try backend.factorizePivotedCholesky(
        large.prefix(rows: 4, columns: 4), inOrder: [0, 1, 2, 3], leading: 0)
    }
    backend.withHostMatrix(small, for: .changing) { $0[0, 0] = 1 }
  }

  @Test func `a call that fails is the last one`() throws {
    let libraries = unsafe EmulatedGPU.libraries {
      unsafe $0.pointee.cuLaunchKernel = { kernel, x, y, z, bx, by, bz, shared, stream, parameters, extra in
        launchesLeft.wrappingSubtract(1, ordering: .relaxed).newValue <= 0
          ? 719
          : unsafe Driver.emulated.calls.cuLaunchKernel(
            kernel, x, y, z, bx, by, bz, shared, stream, parameters, extra)
      }
    }
    defer { launchesLeft.store(.max, ordering: .relaxed) }
    let backend = try EmulatedGPU.backend(libraries)
    let matrix = backend.upload(Matrix(rows: 1, columns: 2, [3, 4]))
    launchesLeft.store(2, ordering: .relaxed)
    backend.scale(matrix, by: 2)
    #expect(backend.failure == nil)
    backend.scale(matrix, by: 2)
    guard case .callFailed("scale", _) = backend.failure as? CUDAError else {
      Issue.record("\(String(describing: backend.failure))")
      return
    }
    backend.scale(matrix, by: 2)
    #expect(backend.download(matrix).elements != [12, 16])
  }
}
