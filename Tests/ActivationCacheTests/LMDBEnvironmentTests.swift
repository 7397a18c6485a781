import Glibc
import Tensors
import Testing

@testable import ActivationCache

@Suite struct LMDBEnvironmentTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  @Test func `the map grows with what is written`() throws {
    let initialMapBytes = 1 << 16
    let store = try HiddenStatesStore(
      path: directory.cache, elementType: .float32, compressionLevel: 1, threads: 1,
      initialMapBytes: initialMapBytes)
    let matrices = (0..<8).map { hiddenStates(rows: 100, columns: 256, seed: $0) }
    for (batch, matrix) in matrices.enumerated() {
      // A prefetch under way holds a transaction open while the map wants to grow.
      if batch > 0 { store.prefetch(key(batch: batch - 1)) }
      try store.write(matrix, key: key(batch: batch))
    }
    #expect(store.environment.mapBytes > 8 * initialMapBytes)
    for (batch, matrix) in matrices.enumerated() {
      let result = try store.matrix(key(batch: batch), rows: 100, columns: 256)
      #expect(bitPatterns(result) == bitPatterns(matrix))
    }
  }

  @Test func `an error in a transaction undoes all of it`() throws {
    let environment = try LMDBEnvironment(path: directory.cache)
    #expect(throws: CacheError.missing(key())) {
      try environment.write { (transaction) throws(CacheError) in
        try unsafe transaction.put(key(), count: 4) { unsafe $0.copyBytes(from: [1, 2, 3, 4]) }
        throw .missing(key())
      }
    }
    let isAbsent = try unsafe environment.withValue(of: key()) { unsafe $0 == nil }
    #expect(isAbsent)
  }

  @Test func `the files go with the store`() throws {
    do {
      let store = try HiddenStatesStore(path: directory.cache, elementType: .float16, threads: 1)
      try store.write(hiddenStates(rows: 2, columns: 2, seed: 1), key: key())
      #expect(FileOperations.exists(directory.cache))
    }
    #expect(!FileOperations.exists(directory.cache))
    #expect(!FileOperations.exists(directory.cache + "-lock"))
  }

  @Test func `a cache that an earlier run left is begun anew`() throws {
    do {
      let left = try LMDBEnvironment(path: directory.cache)
      try left.write { (transaction) throws(CacheError) in
        try unsafe transaction.put(key(), count: 1) { unsafe $0.copyBytes(from: [1]) }
      }
    }
    let store = try HiddenStatesStore(path: directory.cache, elementType: .float16, threads: 1)
    #expect(try store.storedBytes(key()) == nil)
  }

  @Test func `a file that is no cache is refused and left alone`() throws {
    let path = directory.path + "/other"
    let file = unsafe fopen(path, "w")
    unsafe fputs(String(repeating: "not a cache ", count: 1000), file)
    unsafe fclose(file)
    #expect {
      try HiddenStatesStore(path: path, elementType: .float16, threads: 1)
    } throws: { error in
      guard case CacheError.lmdb("mdb_env_open", _, _, path, nil) = error else { return false }
      return true
    }
    #expect(FileOperations.exists(path))
    #expect(!FileOperations.exists(path + "-lock"))
  }

  @Test func `a directory that cannot be made is named`() {
    #expect {
      try HiddenStatesStore(path: "/dev/null/deep/cache.mdb", elementType: .float16, threads: 1)
    } throws: { error in
      guard case CacheError.file("mkdir", ENOTDIR, _, "/dev/null/deep") = error else { return false }
      return true
    }
  }

  /// Needs a small file system of its own, which only root may mount.
  @Test func `a full disk is an error that leaves the cache usable`() throws {
    guard unsafe mount("tmpfs", directory.path, "tmpfs", 0, "size=2m") == 0 else {
      try Test.cancel("no file system could be mounted")
    }
    defer { unsafe umount2(directory.path, Int32(MNT_DETACH)) }
    let store = try HiddenStatesStore(path: directory.cache, elementType: .float32, threads: 1)
    let matrix = hiddenStates(rows: 100, columns: 1000, seed: 1)
    var batch = 0
    #expect {
      while batch < 20 {  // 8 MB into 2 MB
        try store.write(matrix, key: key(batch: batch))
        batch += 1
      }
    } throws: { error in
      guard case CacheError.noSpace(directory.cache, let freeBytes) = error else { return false }
      return freeBytes < 1 << 20
    }
    #expect(batch >= 1)
    #expect(try bitPatterns(store.matrix(key(), rows: 100, columns: 1000)) == bitPatterns(matrix))

    // Once a person has made room, the same call succeeds.
    let isLarger = unsafe mount("tmpfs", directory.path, "tmpfs", UInt(MS_REMOUNT), "size=8m") == 0
    try #require(isLarger)
    try store.write(matrix, key: key(batch: batch))
    #expect(
      try bitPatterns(store.matrix(key(batch: batch), rows: 100, columns: 1000)) == bitPatterns(matrix))
  }
}
