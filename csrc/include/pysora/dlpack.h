#pragma once
#include <cstdint>

// The part of DLPack 1.x's published binary interface that borrowing a tensor needs: own declarations, its layout.
enum DLDeviceType : std::int32_t { kDLCPU = 1, kDLCUDA = 2 };
enum DLDataTypeCode : std::uint8_t { kDLInt = 0, kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4 };

struct DLDevice {
  DLDeviceType device_type;
  std::int32_t device_id;
};

struct DLDataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t *shape, *strides;  // in elements
  std::uint64_t byte_offset;
};

// What a tensor type's `__dlpack_c_exchange_api__` points to (a capsule named "dlpack_exchange_api").
struct DLPackExchangeAPI {
  std::uint32_t major, minor;  // the layout below holds for major 1
  DLPackExchangeAPI* previous;
  void *allocate, *managed_from_object, *managed_to_object;  // not called here
  int (*dltensor_from_py_object_no_sync)(void* object, DLTensor* out);
  int (*current_work_stream)(DLDeviceType, std::int32_t device_id, void** stream);
};
