/* A libcuda that answers what Triton asks of a driver, checks what a launch must satisfy, and
 * launches nothing. Built and loaded by stub_driver.py. */
#include <cuda.h>
#include <string.h>

#define OK CUDA_SUCCESS
#define WRONG CUDA_ERROR_INVALID_VALUE

static int shared_limit, major, minor;

void stub_configure(int shared, int capability) {
  shared_limit = shared;
  major = capability / 10;
  minor = capability % 10;
}

CUresult cuInit(unsigned flags) { return OK; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return OK; }
CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == WRONG ? "the stub refuses this argument" : "unknown to the stub";
  return OK;
}

CUresult cuDeviceGetCount(int *count) { *count = 1; return OK; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal; return OK; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = shared_limit; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 49152; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = major; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = minor; break;
  default: *value = 1;
  }
  return OK;
}

CUresult cuCtxGetCurrent(CUcontext *context) { *context = (CUcontext)1; return OK; }
CUresult cuCtxSetCurrent(CUcontext context) { return OK; }
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return OK; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 0; return OK; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return OK; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)1;
  return OK;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = (CUmodule)1;
  return memcmp(image, "\177ELF", 4) ? CUDA_ERROR_INVALID_IMAGE : OK;
}
CUresult cuModuleUnload(CUmodule module) { return OK; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)1;
  return OK;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return OK;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  int shared = attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
  return shared && value > shared_limit ? WRONG : OK;
}
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return OK; }
CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function,
                                      const CUlaunchConfig *config) {
  *count = 1;
  return OK;
}

/* Memory of the CPU passes for the device's. */
CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)data = pointer;
  return OK;
}
CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **data,
                                CUdeviceptr pointer) {
  for (unsigned i = 0; i < count; ++i)
    *(CUdeviceptr *)data[i] = pointer;
  return OK;
}

/* The limits that the CUDA driver API's reference gives for a tiled tensor map. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *address, const cuuint64_t *sizes, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  static const int swizzled[] = {0, 32, 64, 128}; /* bytes, by CUtensorMapSwizzle */
  int bytes = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4
              : type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
  if ((size_t)map % 64 || (size_t)address % 16 || rank < 1 || rank > 5)
    return WRONG;
  for (unsigned i = 0; i < rank; ++i) {
    if (sizes[i] < 1 || sizes[i] > 1ull << 32 || box[i] < 1 || box[i] > 256)
      return WRONG;
    if (i + 1 < rank && (strides[i] % 16 || strides[i] >= 1ull << 40))
      return WRONG;
  }
  if (box[0] * bytes % 16)
    return WRONG;
  if (swizzle >= 1 && swizzle <= 3 && box[0] * bytes > swizzled[swizzle])
    return WRONG;
  return OK;
}
CUresult cuTensorMapEncodeIm2col(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                 void *address, const cuuint64_t *sizes, const cuuint64_t *strides,
                                 const int *lower, const int *upper, cuuint32_t channels,
                                 cuuint32_t pixels, const cuuint32_t *steps,
                                 CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                 CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  return WRONG;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments,
                          void **extra) {
  unsigned threads = config->blockDimX * config->blockDimY * config->blockDimZ;
  if (config->gridDimX < 1 || config->gridDimX > 0x7fffffff || config->gridDimY < 1 ||
      config->gridDimY > 65535 || config->gridDimZ < 1 || config->gridDimZ > 65535)
    return WRONG;
  if (threads < 1 || threads > 1024 || config->sharedMemBytes > (unsigned)shared_limit)
    return WRONG;
  return OK;
}
